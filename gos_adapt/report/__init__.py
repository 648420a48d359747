"""The report: facts (plain data), pictures, one HTML file."""
