"""What all sections have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

#: As Kafka allows, and a file system.
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,199}$")]


class Section(BaseModel):
    """Some settings that belong together; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
