"""Pictures of moving bodies: one palette, one camera, one mannequin for the report, the film strip and the films, all
drawn on the CPU; and the viewer's stage, as picture, film, offline page and in the browser."""
