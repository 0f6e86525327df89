"""One model behind HTTP, in the form of OpenAI's interface: requests, their answers, the server and its page."""
