"""Four small skills for the embedded base: rows without end from seeds, training and test apart, answers judged."""

from benchmarks.skill_data import c_comments, dates, json_extraction, sql
from benchmarks.skill_data.skill import Row, Skill

SKILLS: tuple[Skill, ...] = (sql.SKILL, json_extraction.SKILL, dates.SKILL, c_comments.SKILL)

__all__ = ["SKILLS", "Row", "Skill"]
