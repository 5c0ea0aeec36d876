"""Labels over HTTP: send a picture, get it back under the colours of its classes.

    pip install "attnops[train]" fastapi uvicorn
    python examples/serve.py runs/camvid_segnext_t-0001/best.ckpt
    curl --data-binary @street.jpg http://127.0.0.1:8000/ > labels.png

One process labels a picture at a time, with all cores that PyTorch may use. More cores than one
picture fills want several processes with few threads each (OMP_NUM_THREADS), each with a copy of
the network.
"""

import io
import sys
from typing import Any

from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from attnops.models import deploy
from attnops.training import load_trained
from attnops.training.prediction.pictures import overlay


def make_app(checkpoint: str, **options: Any) -> Any:
    """A FastAPI application around a checkpoint of `attnops train`; options are `deploy`'s."""
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.concurrency import run_in_threadpool

    network, info = load_trained(checkpoint)
    deployed = deploy(network, **options)
    app = FastAPI()

    def painted(data: bytes) -> bytes:
        image = pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB"))
        written = io.BytesIO()
        overlay(image, deployed(image[None])[0], info).save(written, "PNG")
        return written.getvalue()

    @app.post("/")
    async def label(request: Request) -> Response:
        try:
            png = await run_in_threadpool(painted, await request.body())
        except (OSError, ValueError) as error:  # no picture, or one that is too small
            raise HTTPException(422, str(error)) from error
        return Response(png, media_type="image/png")

    return app


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(make_app(sys.argv[1]))
