"use strict";
// The model of a page: what LSTMClassifier in seqclf/model.py computes, for one sequence, in float64.
// Names are those of its parameters. A sequence is an array of steps; a step is an array of raw
// numbers, or the number of a token. tests/test_demo.py compares every kind of model with torch.

function makeModel(spec, weights) {
  // ---- one step: normalised, or a token's embedding
  const embedding = weights["embedding.weight"];
  function embed(step) {
    if (embedding) return embedding.subarray(step * spec.width, (step + 1) * spec.width);
    return Float64Array.from(step, (value, f) => {
      const number = Math.fround(value - (spec.offset[f] ?? 0)) / spec.scale;
      return spec.mean.length ? (number - spec.mean[f]) / spec.std[f] : number;
    });
  }

  function stackSteps(steps) {
    if (spec.stack === 1) return steps;
    const stacked = [];
    for (let first = 0; first < steps.length; first += spec.stack) {
      const wide = new Float64Array(spec.stack * spec.width);
      steps.slice(first, first + spec.stack).forEach((step, i) => wide.set(step, i * spec.width));
      stacked.push(wide);
    }
    return stacked;
  }

  // ---- the LSTM. Gates stand in torch's order: input, forget, cell, output.
  const sigmoid = (x) => 1 / (1 + Math.exp(-x));
  function runDirection(layer, suffix, inputs) {
    const [weightX, weightH, biasX, biasH] = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]
      .map((name) => weights[`${layer}.${name}_l0${suffix}`]);
    const size = biasX.length / 4;
    const gates = new Float64Array(4 * size), cell = new Float64Array(size);
    let hidden = new Float64Array(size);
    return inputs.map((input) => {
      for (let row = 0; row < 4 * size; row++) {
        let sum = biasX[row] + biasH[row];
        for (let f = 0, at = row * input.length; f < input.length; f++) sum += weightX[at + f] * input[f];
        for (let h = 0, at = row * size; h < size; h++) sum += weightH[at + h] * hidden[h];
        gates[row] = sum;
      }
      hidden = new Float64Array(size);
      for (let h = 0; h < size; h++) {
        const enters = sigmoid(gates[h]) * Math.tanh(gates[2 * size + h]);
        cell[h] = sigmoid(gates[size + h]) * cell[h] + enters;
        hidden[h] = sigmoid(gates[3 * size + h]) * Math.tanh(cell[h]);
      }
      return hidden;
    });
  }

  function runLayers(inputs) {
    let outputs = inputs, last;
    for (let number = 0; number < spec.num_layers; number++) {
      const layer = number ? `upper.${number - 1}` : "rnn";
      const forward = runDirection(layer, "", outputs);
      last = forward.at(-1);
      if (!spec.bidirectional) {
        outputs = forward;
        continue;
      }
      const backward = runDirection(layer, "_reverse", [...outputs].reverse()).reverse();
      last = Float64Array.of(...last, ...backward[0]);
      outputs = forward.map((output, t) => Float64Array.of(...output, ...backward[t]));
    }
    return { outputs, last };
  }

  // ---- from the outputs to probabilities
  function pool(outputs) {
    const pooled = new Float64Array(outputs[0].length).fill(spec.pooling === "max" ? -Infinity : 0);
    let shares = outputs.map(() => 1 / outputs.length);
    if (spec.pooling === "attention") {
      const weight = weights["attention.weight"];
      const scores = outputs.map((output) => output.reduce((sum, x, h) => sum + weight[h] * x, 0));
      const most = scores.reduce((a, b) => Math.max(a, b)), raised = scores.map((x) => Math.exp(x - most));
      const total = raised.reduce((a, b) => a + b, 0);
      shares = raised.map((x) => x / total);
    }
    outputs.forEach((output, t) => {
      for (let h = 0; h < pooled.length; h++) {
        pooled[h] = spec.pooling === "max" ? Math.max(pooled[h], output[h]) : pooled[h] + shares[t] * output[h];
      }
    });
    return pooled;
  }

  function average(steps, get) {
    return steps.reduce((sum, step) => sum + get(step), 0) / steps.length;
  }

  function momentsOf(steps, c) {
    const center = average(steps, (step) => step[c]);
    return [center, average(steps, (step) => (step[c] - center) ** 2) + spec.row_epsilon];
  }

  /** The features of fixed convolutions: for how large a share of the steps each is above a threshold. */
  function countAbove(steps) {
    if (!spec.dilations.length) return [];
    const [inputs, thresholds, widths, mean, factor] = ["inputs", "thresholds", "widths", "mean", "factor"]
      .map((name) => weights[`rocket.${name}`]);
    const ofFeatures = Array.from(steps[0], (_, f) => momentsOf(steps, f));
    const rows = steps.map((step) => {
      const normal = Array.from(step, (x, f) => (x - ofFeatures[f][0]) / Math.sqrt(ofFeatures[f][1]));
      return [...step, ...normal]; // [2 F]
    });
    const numKernels = spec.kernels.length, numTracks = rows[0].length;
    const numThresholds = thresholds.length / (spec.dilations.length * numKernels);
    const shares = new Float64Array(thresholds.length), track = new Float64Array(rows.length);
    spec.dilations.forEach((dilation, d) => spec.kernels.forEach((kernel, k) => {
      const read = inputs.subarray((d * numKernels + k) * numTracks, (d * numKernels + k + 1) * numTracks);
      let outside = 0;
      for (let f = 0; f < numTracks / 2; f++) if (read[f]) outside += spec.outside;
      rows.forEach((row, t) => {
        track[t] = 0;
        for (let f = 0; f < numTracks; f++) if (read[f]) track[t] += row[f];
      });
      const middle = (kernel.length - 1) / 2;
      for (let t = 0; t < rows.length; t++) {
        let sum = 0;
        for (let s = 0; s < kernel.length; s++) sum += kernel[s] * (track[t + (s - middle) * dilation] ?? outside);
        for (let q = 0; q < numThresholds; q++) {
          const place = (d * numThresholds + q) * numKernels + k;
          const above = (sum - thresholds[place]) / widths[place] + 0.5;
          shares[place] += Math.min(1, Math.max(0, above)) / rows.length;
        }
      }
    }));
    return shares.map((share, r) => (share - mean[r]) * factor[r]);
  }

  function toProbabilities(pooled) {
    const weight = weights["out.weight"];
    const logits = Array.from(weights["out.bias"], (bias, c) =>
      pooled.reduce((sum, x, h) => sum + weight[c * pooled.length + h] * x, bias) / spec.temperature);
    const most = Math.max(...logits), raised = logits.map((x) => Math.exp(x - most));
    const total = raised.reduce((a, b) => a + b, 0);
    return raised.map((x) => x / total);
  }

  function cut(steps) {
    if (spec.max_length === null || steps.length <= spec.max_length) return steps;
    return spec.keep === "first" ? steps.slice(0, spec.max_length) : steps.slice(-spec.max_length);
  }

  function classify(sequence) {
    const steps = cut(sequence).map(embed);
    const { outputs, last } = runLayers(stackSteps(steps));
    const pooled = spec.pooling === "last" ? last : pool(outputs);
    return toProbabilities(Float64Array.of(...pooled, ...countAbove(steps)));
  }

  function windowsOf(sequence) {
    const size = spec.window;
    if (size === null || sequence.length <= size) return [sequence];
    const windows = [];
    for (let first = 0; first + size <= sequence.length; first += spec.stride ?? size) {
      windows.push(sequence.slice(first, first + size));
    }
    return windows;
  }

  /** The probability of each class; of a model of windows the mean over the sequence's windows. */
  function probabilities(sequence) {
    const found = windowsOf(sequence).map(classify);
    return found[0].map((_, c) => found.reduce((sum, one) => sum + one[c], 0) / found.length);
  }

  /** What the model says of the first `ends[i]` steps alone, for each i. */
  function* prefixes(sequence, ends) {
    if (!spec.streams || spec.window !== null) {
      for (const end of ends) yield probabilities(sequence.slice(0, end));
      return;
    }
    const { outputs } = runLayers(cut(sequence).map(embed));
    for (const end of ends) {
      const read = outputs.slice(0, end);
      yield toProbabilities(spec.pooling === "last" ? read.at(-1) : pool(read));
    }
  }

  return { probabilities, prefixes };
}

/** The tensors of a page: {name: [where it begins, how many numbers]} in one text of base64. */
function decodeWeights(tensors, text, isHalf) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer), found = {};
  const read = isHalf ? (i) => fromHalf(view.getUint16(2 * i, true)) : (i) => view.getFloat32(4 * i, true);
  for (const [name, [first, count]] of Object.entries(tensors)) {
    found[name] = Float32Array.from({ length: count }, (_, i) => read(first + i));
  }
  return found;
}

function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
}
