"""Groups by immaculate, at its defaults: FOLDER METHOD."""

import json
import subprocess
import sys
from pathlib import Path

folder, method = sys.argv[1:]
command = [str(Path(sys.executable).with_name("immaculate")), "--json", "--method", method, folder]
found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
print(json.dumps({"groups": found["exact"] + found["near"]}))
