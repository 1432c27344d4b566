"The command line, as `python -m cfvae`."

from cfvae.cli import main

raise SystemExit(main())
