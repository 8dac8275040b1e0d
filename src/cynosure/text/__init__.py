"""Text: read from files, turned into tokens and the bytes they cover, cut into windows."""

from cynosure.text.division import Division as Division
from cynosure.text.documents import TRAINED as TRAINED
from cynosure.text.documents import Document as Document
from cynosure.text.documents import find_sources as find_sources
from cynosure.text.documents import read_documents as read_documents
from cynosure.text.documents import source_digest as source_digest
from cynosure.text.packing import Packed as Packed
from cynosure.text.packing import Packing as Packing
from cynosure.text.packing import Row as Row
from cynosure.text.packing import Separators as Separators
from cynosure.text.packing import Tokenised as Tokenised
from cynosure.text.packing import document_ids as document_ids
from cynosure.text.tokens import Tokens as Tokens
from cynosure.text.tokens import prefix_token as prefix_token
from cynosure.text.tokens import spell as spell
from cynosure.text.tokens import token_texts as token_texts
from cynosure.text.tokens import tokenize as tokenize
from cynosure.text.vocabulary import train_tokenizer as train_tokenizer
from cynosure.text.whole import OVERLONG as OVERLONG
from cynosure.text.whole import TooLong as TooLong
from cynosure.text.whole import WholePacked as WholePacked
from cynosure.text.windows import PROTOCOLS as PROTOCOLS
from cynosure.text.windows import SEPARATOR as SEPARATOR
from cynosure.text.windows import Protocol as Protocol
from cynosure.text.windows import Window as Window
from cynosure.text.windows import check_protocol as check_protocol
