"""Reading files: pictures, folders, archives, and what is kept of them. Plain Python, no lesson needs it."""
