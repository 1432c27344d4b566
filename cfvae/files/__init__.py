"""Reading files: pictures, folders, archives, and what is kept of them. Plain Python, exported by no lesson."""
