"""How a media file becomes samples and frames at their times.

`source` opens a file, `timeline` says when each of its packets is heard or shown, `sound` and `picture` decode. Nothing
here knows of clips, stores or torch.
"""
