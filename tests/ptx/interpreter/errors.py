class PtxError(Exception):
    """What a GPU would not do, or what only luck would make right."""
