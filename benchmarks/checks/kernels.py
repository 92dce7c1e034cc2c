"""Speed of the operators on the CPU: what a first prototype reached against eager torch, and no peer faster."""

from __future__ import annotations

from benchmarks.requirement import Requirement, no_peer_faster, speed_up

SPEED_UPS = {
    "fk_quaternion_2048": 15,
    "fk_quaternion_32768": 15,
    "fk_matrix_32768_backward": 14,
    "procrustes_2048": 50,
    "procrustes_32768": 50,
    "so3_near_104k": 100,
    "so3_near_836k": 100,
    "so3_near_104k_backward": 75,
    "so3_near_836k_backward": 75,
    "rewards_16": 45,
    "rewards_256": 45,
    "sde_step_log_prob_128": 11,
    "sde_noisy_step_log_prob_128": 8,
    "sde_log_prob_128_backward": 12,
}
"""Workload -> how many times faster than the fastest eager reference, with two threads."""

SAME_INPUTS = ("sde_step_log_prob_128", "sde_log_prob_128_backward")
"""Workloads that the prototype was measured on with its 100 MB of inputs in a cache of 260 MB. From memory these
operators take as long as a copy of as many bytes, which is 9 to 10 and 7 to 9 times less than eager torch takes."""

REQUIREMENTS: tuple[Requirement, ...] = (
    *(
        speed_up(workload, workload, ratio, same_inputs=workload in SAME_INPUTS)
        for workload, ratio in SPEED_UPS.items()
    ),
    *(no_peer_faster(f"{workload}_peers", workload) for workload in (*SPEED_UPS, "so3_random_104k")),
)
