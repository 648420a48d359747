"""Standing here, this file puts `tests/` on the import path, so that tests of any folder share its builders."""
