"""Training: from raw text to a checkpoint. Of the packages of this project it imports only `zoo`."""
