"""Models at rest and on their way into memory:

bundle.py         what a model is on disk: read and verify, write; needs no torch
calibrations.py   what a version's outputs go through before they are published
manifest.py       manifest.json: every field, and what contradicts itself
container.py      files in a folder or archive, read within bounds and written atomically
environment.py    what a bundle needs of the environment: library versions, an importable module
fitting.py        a feature contract beside an Avro event schema
architectures.py  built-in torch modules
loading.py        bundle -> torch module
precisions.py     torch module -> the same in bfloat16 or int8
devices.py        "auto", "cpu", "cuda:0" -> a device that exists
"""
