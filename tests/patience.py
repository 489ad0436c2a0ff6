"""Timeouts for a machine that is slow, or stops for some seconds."""

from dataclasses import replace

from api.timeouts import APP_TIMEOUTS

PATIENT_S = 60.0
PATIENT = replace(
    APP_TIMEOUTS,
    command_s=PATIENT_S,
    connect_s=PATIENT_S,
    deaf_s=PATIENT_S,
    silent_s=PATIENT_S,
    stalled_s=PATIENT_S,
    redis_connect_s=PATIENT_S,
    redis_answer_s=PATIENT_S,
    settle_s=PATIENT_S,
    turn_s=PATIENT_S,
    s3_turn_s=PATIENT_S,
    s3_connect_s=PATIENT_S,
    s3_answer_s=PATIENT_S,
    standing_s=PATIENT_S,
    introducing_s=PATIENT_S,
)
