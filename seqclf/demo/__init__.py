"""A page that runs a trained model: one HTML file, which needs no server and makes no request."""
