"""Exit 0 if /readyz on the given local port answers 200: `python healthcheck.py 9465`. The image has no curl."""

import sys
import urllib.error
import urllib.request

TIMEOUT_S = 3

try:
    with urllib.request.urlopen(f"http://127.0.0.1:{int(sys.argv[1])}/readyz", timeout=TIMEOUT_S) as answer:
        sys.stdout.write(answer.read().decode())
except urllib.error.HTTPError as error:
    sys.exit(error.read().decode().strip() or str(error))
except OSError as error:
    sys.exit(f"no answer: {error}")
