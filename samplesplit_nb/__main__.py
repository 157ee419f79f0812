"`python -m samplesplit_nb` is the `samplesplit` command"
from samplesplit_nb.cli import main
raise SystemExit(main())
