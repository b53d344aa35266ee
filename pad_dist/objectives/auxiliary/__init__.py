"""Auxiliary losses behind one interface: a module for each, which registers itself under its config section."""
