"""The control plane: models, versions, people and jobs; it knows no tensor."""
