"""The checklist of a report on AI in medical imaging, by its item numbers."""

REFERENCE = "CLAIM 2024 update, doi:10.1148/ryai.240300"
TO_BE_FILLED = "to be filled in by the author"

ITEMS = (
    "Title: a study of AI, and of which kind",
    "Abstract: design, methods, results, conclusions",
    "Background, intended use and role",
    "Aims and hypotheses",
    "Prospective or retrospective",
    "Goal of the study",
    "Data: sources",
    "Data: who is included and excluded",
    "Data: preprocessing",
    "Data: selection of subsets",
    "Data: de-identification",
    "Data: what was done about missing data",
    "Data: image acquisition",
    "Reference standard: definition",
    "Reference standard: reasons for it",
    "Reference standard: who annotated",
    "Reference standard: annotation of the test set",
    "Reference standard: agreement of the annotators",
    "Partitions: how images were assigned",
    "Partitions: at which level they are disjoint",
    "Test set: intended size",
    "Model: description",
    "Model: software",
    "Model: initial parameters",
    "Training: details",
    "Training: how the final model was chosen",
    "Training: ensembles",
    "Evaluation: metrics",
    "Evaluation: uncertainty",
    "Evaluation: robustness",
    "Evaluation: explanations",
    "Evaluation: on internal data",
    "Evaluation: on external data",
    "Trial registration",
    "Results: numbers of patients, included and excluded",
    "Results: demographic and clinical characteristics",
    "Results: performance and its uncertainty",
    "Results: diagnostic performance and its precision",
    "Results: analysis of failures",
    "Limitations",
    "Implications for practice",
    "Full protocol or technical details",
    "Availability of software, model and data",
    "Funding",
)


def claim_rows(answers: dict[int, str]) -> list[list[str]]:
    """[number, item, answer] of every item; items without an answer are the author's to fill in."""
    return [
        [str(item), words, answers.get(item, TO_BE_FILLED)]
        for item, words in enumerate(ITEMS, start=1)
    ]
