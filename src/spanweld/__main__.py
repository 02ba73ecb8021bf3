"""``python -m spanweld``"""

from spanweld.commands import main

main()
