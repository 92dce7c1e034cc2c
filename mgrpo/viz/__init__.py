"""Pictures of moving bodies, drawn on the CPU: one palette, one camera, one mannequin for the report, the film and the
film strip."""
