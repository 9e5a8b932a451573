"""The one seam into models: their attention as sites, whatever library they come from."""
