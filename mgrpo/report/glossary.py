"""What the words of a report mean."""

from __future__ import annotations

METRIC_TEXTS = {
    "mpjpe_mm": (
        "Mean distance between predicted and recorded joints in the world, over 22 joints and all frames, without any "
        "alignment."
    ),
    "pa_mpjpe_mm": (
        "The same after each predicted frame is moved, turned and scaled onto the recording: the error of the pose "
        "alone."
    ),
    "pa_mpjpe_egoallo_mm": (
        "As EgoAllo's evaluation computes it: the recording is aligned to the prediction and compared with itself, so "
        "the prediction enters through the alignment only. Kept to stand beside published numbers."
    ),
    "mpjve_mm_s": "Mean length of the difference between predicted and recorded joint velocities.",
    "mpjre_geodesic_deg": "Mean angle of the rotation between predicted and recorded local joint rotations, 21 joints.",
    "mpjre_paper_deg": "Mean absolute difference of axis-angle components, wrapped; about half the angle.",
    "jitter_m_s3": (
        "Mean size of the third derivative of joint positions. The recording has jitter too: nearer to its value is "
        "more natural than zero."
    ),
    "jitter_ratio": (
        "Jitter of the prediction divided by the jitter of the recording; 1 means as smooth as the recording."
    ),
    "gp_mean_mm": "Depth of the lowest joint below the floor, averaged over frames.",
    "gp_sum_m": "The same depth summed over the frames of a window.",
    "fs_mm_per_contact_frame": "How far a foot slides along the floor in a frame in which it touches it.",
    "fs_egoallo_m": (
        "EgoAllo's foot skating: slide summed over frames and feet, after the clip is lowered onto its lowest joint."
    ),
    "head_position_mm": (
        "Mean distance between predicted and recorded head joint. The head pose is the input, so this stays small."
    ),
    "head_angle_deg": "Mean angle between predicted and recorded head rotation.",
    "head_rotation_frobenius": "EgoAllo's head orientation error: mean Frobenius norm of R_predicted R_recorded^T - I.",
    "gnd": "Share of windows in which a foot touches the floor at all.",
    "diversity_joint_std_mm": (
        "Standard deviation of a joint's position over the samples of one head path. Neither high nor low is good by "
        "itself."
    ),
    "diversity_l2": "Mean distance between the flattened motions of one group.",
    "score": "Score between 0 and 1 that the perceptual model gives.",
    "score_gap": "Score of the recording minus score of the generated motion.",
    "accuracy": (
        "How often the perceptual model scores the recording above the generated motion. High says that the model can "
        "tell them apart."
    ),
    "wrong_count": (
        "In how many windows the generated motion scores at least as high as the recording; with several samples of a "
        "window, on average."
    ),
}
"""What a metric means, by the key of its row."""

TERMS = {
    "Prior": "The diffusion model trained to denoise recorded body motion, given only the path of the head.",
    "Post-trained": "The same network after GRPO, sampled in the same way and with the same noise.",
    "Ground truth": "The recorded motion of a clip that no model saw in training.",
    "GRPO": (
        "Group relative policy optimisation: several motions are sampled for one head path, each is scored, and the "
        "network moves towards those that score above their group's mean."
    ),
    "Perlin noise": (
        "A smooth random shift of the head path that the policy sees during training. Its strength is alpha; rewards "
        "and evaluation use the clean path."
    ),
    "Dead group": (
        "A group whose members all receive practically the same reward: it has nothing to learn from and is left out."
    ),
    "Ratio": (
        "Probability of a sampled step under the network now, divided by that when it was sampled. It starts at "
        "exactly 1."
    ),
    "Clip fraction": "Share of ratios that left the allowed band, so that their gradient was cut off.",
    "Approximate KL": "How far the network has moved from the one that sampled, per step and channel.",
    "Paired difference": (
        "Post-trained minus prior for each window, then averaged: what makes a window easy or hard cancels out."
    ),
    "±": (
        "One standard error of the mean. The line through a dot in the table is the 95 % interval of the paired "
        "difference."
    ),
}
"""Terms that every report uses."""
