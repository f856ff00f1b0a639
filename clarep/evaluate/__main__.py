"""`python -m clarep.evaluate`: the command of nbs/report/06_profile.ipynb"""

from clarep.report.profile import main

main()
