"""The model card of an exported model: README.md with the metadata of the Hugging Face hub, and a picture of its curve."""
