// What the pages say of what they show, where the analysis does not say it itself.
"use strict";

AMR.TEXT = {
  stages: { U: "One modality", D: "DIME", C: "Interaction", R: "Unit", P: "Sparse classifier" },
  errors: {
    perception: "is repaired when this modality's encoding is replaced by that of a clip that is classified right",
    interaction: "is repaired when the modalities are paired anew",
    prediction: "is repaired when the head is refitted",
    unresolved: "none of these repairs it",
  },
  outcomes: { redundant: "right", unique: "right", synergistic: "right", lost: "wrong", neither: "wrong" }, // together
  simulation: { U: "U", "U+C": "U and C", "+R_local": "and R, this clip", "+R_global": "and R, extreme clips", "+P": "and P" },
  keys: [
    ["Space", "play or pause (on a clip)"], ["← →", "seek by a fiftieth, on the spectrogram; move among blocks and patches"],
    ["Home End", "begin and end, on the spectrogram"], ["Enter", "open, pick"], ["J K", "next and previous clip"],
    ["M", "next method"], ["C", "next class"], ["T", "dark or light"], ["/", "search clips"], ["?", "this list"],
  ],
};
