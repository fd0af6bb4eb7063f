"""The campaign: Lorica is killed, starved and lied to on purpose, far longer than a test may take.

    python -m campaign.runs           runs that are killed, that lose power, whose disk fails or is full
    python -m campaign.files          adapter files and data files that are damaged
    python -m campaign.memory_limit   runs whose memory is limited
    python -m campaign.interop        adapters of twenty families, written and read by PEFT and by Lorica

Each part states what must hold, counts its cases, and has controls: the same part on code that is broken in one known
way, where it must find failures.  Results are in `benchmarks/results/`.
"""
