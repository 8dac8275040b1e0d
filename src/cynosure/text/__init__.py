"""Text: read from files, turned into tokens and the bytes they cover, cut into windows."""

from cynosure.text.documents import Document as Document
from cynosure.text.documents import find_sources as find_sources
from cynosure.text.documents import read_documents as read_documents
from cynosure.text.documents import source_digest as source_digest
from cynosure.text.tokens import Tokens as Tokens
from cynosure.text.tokens import prefix_token as prefix_token
from cynosure.text.tokens import token_texts as token_texts
from cynosure.text.tokens import tokenize as tokenize
from cynosure.text.windows import PROTOCOLS as PROTOCOLS
from cynosure.text.windows import SEPARATOR as SEPARATOR
from cynosure.text.windows import Protocol as Protocol
from cynosure.text.windows import Window as Window
from cynosure.text.windows import check_protocol as check_protocol
