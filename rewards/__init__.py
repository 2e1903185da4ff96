"""A company's own rubrics, composed from the SDK's parts."""
