"""Serve a trained model over HTTP: `python examples/serve.py runs/mine 8000` (docs/serving.md).

Needs `pip install fastapi uvicorn`. seqclf makes batches of the sequences of a request.
"""

import sys
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

import seqclf

MOST_SEQUENCES, MOST_STEPS, MOST_BYTES = 256, 10_000, 2**22  # of a request, a sequence, a request
classifier = seqclf.load(sys.argv[1])
app = FastAPI()


class Question(BaseModel):
    """Sequences as `predict_proba` takes them: lists of steps, of tokens, or texts."""

    sequences: Annotated[list[Any], Field(min_length=1, max_length=MOST_SEQUENCES)]


@app.middleware("http")
async def limit_size(request: Request, call_next: Any) -> Any:
    """Refuse a large body, or one of unknown size, before it is read."""
    length = request.headers.get("content-length", "")
    if request.method == "POST" and not (length.isdecimal() and int(length) <= MOST_BYTES):
        return Response(f"at most {MOST_BYTES:,} bytes, with their Content-Length", 413)
    return await call_next(request)


@app.exception_handler(RequestValidationError)
async def refuse(request: Request, error: RequestValidationError) -> Response:
    """Say what is wrong, without the input: it may be large, or hold what JSON cannot."""
    problems = [{name: one[name] for name in ("type", "loc", "msg")} for one in error.errors()]
    return JSONResponse({"detail": problems}, 422)


@app.post("/predict")
def predict(question: Question) -> list[dict[str, float]]:
    """Return the probability of each class by its name, for each sequence."""
    # The steps of a sequence follow each other, so a long one holds the server.
    if any(isinstance(one, str | list) and len(one) > MOST_STEPS for one in question.sequences):
        raise HTTPException(422, f"a sequence has at most {MOST_STEPS:,} steps")
    try:
        found = classifier.predict_proba(question.sequences)
    except seqclf.UserError as error:
        raise HTTPException(422, str(error)) from None
    names = classifier.classes_.tolist()
    return [dict(zip(names, row, strict=True)) for row in found.tolist()]


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
