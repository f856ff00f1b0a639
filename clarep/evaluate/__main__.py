"""`python -m clarep.evaluate`: the command of nbs/report/06_profile.ipynb"""

import sys

from clarep.report.profile import main

sys.stdout.reconfigure(errors="backslashreplace") # a terminal may lack the letters of a class's name
main()
