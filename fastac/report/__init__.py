"""Pictures of a run: `plots` has curves and the histogram of α, `contact_sheet` suspicious samples."""
