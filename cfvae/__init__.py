__version__ = "0.1.0"

import os

# Small models on a shared CPU: threads that spin while they wait slow each other down many times over.
# Read once, when the OpenMP library is loaded, so it has to be set before torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
