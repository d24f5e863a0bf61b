"""Export a trained detector as one program that other software runs: preprocessing, network, NMS and rescaling."""
