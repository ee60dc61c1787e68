"""`python -m hub report`: one HTML file on a run, or on several beside each other. It makes no request to anywhere."""
