from cfvae.cli import main

raise SystemExit(main())
