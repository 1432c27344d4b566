"""Reading files: pictures, folders, archives, and what is kept of them. Plain Python, not part of a lesson."""
