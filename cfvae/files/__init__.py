"""Reading files: pictures, folders, archives, and what is kept of them. Plain Python, not from a lesson."""
