"Models of several kinds on the same codes and the same training FLOPs, trained, drawn from and judged."
