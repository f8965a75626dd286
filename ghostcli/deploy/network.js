"use strict";
// The arithmetic of the page: a network as a list of operators, computed for one image at a time.
// A value is {shape: [channels, height, width], data: Float32Array}; vectors have height and width 1.

function float16(bytes) {
  // Little-endian IEEE half precision to Float32Array.
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2);
  const out = new Float32Array(halves.length);
  for (let i = 0; i < out.length; i++) {
    const h = halves[i], exponent = (h >> 10) & 31, fraction = h & 1023;
    const size = exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction;
    out[i] = h & 0x8000 ? -size : size;
  }
  return out;
}

function bytesOf(base64) {
  const text = atob(base64), out = new Uint8Array(text.length);
  for (let i = 0; i < out.length; i++) out[i] = text.charCodeAt(i);
  return out;
}

const value = (shape) => ({ shape, data: new Float32Array(shape[0] * shape[1] * shape[2]) });

function conv(x, node) {
  const [channels, height, width] = x.shape;
  const [count, depth, kh, kw] = node.weight.shape, [sy, sx] = node.strides, [top, left, bottom, right] = node.pads;
  const oh = Math.floor((height + top + bottom - kh) / sy) + 1, ow = Math.floor((width + left + right - kw) / sx) + 1;
  const out = value([count, oh, ow]), w = node.weight.data, size = oh * ow, each = count / node.group;
  for (let o = 0; o < count; o++) {
    const y = out.data.subarray(o * size, (o + 1) * size);
    if (node.bias) y.fill(node.bias.data[o]);
    const first = Math.floor(o / each) * depth;
    for (let i = 0; i < depth; i++) {
      const plane = x.data.subarray((first + i) * height * width, (first + i + 1) * height * width);
      for (let ky = 0; ky < kh; ky++) {
        for (let kx = 0; kx < kw; kx++) {
          const k = w[((o * depth + i) * kh + ky) * kw + kx];
          if (k === 0) continue;
          // the outputs whose input lies inside the image
          const y0 = Math.max(0, Math.ceil((top - ky) / sy)), y1 = Math.min(oh, Math.floor((height - 1 + top - ky) / sy) + 1);
          const x0 = Math.max(0, Math.ceil((left - kx) / sx)), x1 = Math.min(ow, Math.floor((width - 1 + left - kx) / sx) + 1);
          for (let row = y0; row < y1; row++) {
            let from = (row * sy + ky - top) * width + x0 * sx + kx - left;
            for (let at = row * ow + x0, end = row * ow + x1; at < end; at++, from += sx) y[at] += k * plane[from];
          }
        }
      }
    }
  }
  return out;
}

function pool(x, node, start, add, finish) {
  const [channels, height, width] = x.shape, [kh, kw] = node.kernel || [height, width];
  const [sy, sx] = node.strides || [1, 1], [top, left, bottom, right] = node.pads || [0, 0, 0, 0];
  const oh = Math.floor((height + top + bottom - kh) / sy) + 1, ow = Math.floor((width + left + right - kw) / sx) + 1;
  const out = value([channels, oh, ow]);
  for (let c = 0; c < channels; c++)
    for (let row = 0; row < oh; row++)
      for (let column = 0; column < ow; column++) {
        let total = start;
        for (let y = row * sy - top; y < row * sy - top + kh; y++)
          for (let z = column * sx - left; z < column * sx - left + kw; z++)
            if (y >= 0 && y < height && z >= 0 && z < width) total = add(total, x.data[(c * height + y) * width + z]);
        out.data[(c * oh + row) * ow + column] = finish(total, kh * kw);
      }
  return out;
}

function each(x, f) {
  return { shape: x.shape, data: x.data.map(f) };
}

function pair(a, b, f) {
  // A side of 1 stands for every place of the other's.
  const shape = a.shape.map((side, i) => Math.max(side, b.shape[i])), out = value(shape);
  const step = (v) => [v.shape[0] > 1 ? v.shape[1] * v.shape[2] : 0, v.shape[1] > 1 ? v.shape[2] : 0, v.shape[2] > 1 ? 1 : 0];
  const p = step(a), q = step(b);
  let at = 0;
  for (let c = 0; c < shape[0]; c++)
    for (let y = 0; y < shape[1]; y++)
      for (let z = 0; z < shape[2]; z++)
        out.data[at++] = f(a.data[c * p[0] + y * p[1] + z * p[2]], b.data[c * q[0] + y * q[1] + z * q[2]]);
  return out;
}

function resize(x, [fy, fx]) {
  const [channels, height, width] = x.shape, scaled = (side, factor) => Math.floor(Math.fround(side * factor));
  const [rows, columns] = [scaled(height, fy), scaled(width, fx)];
  const out = value([channels, rows, columns]);
  let at = 0;
  for (let c = 0; c < channels; c++)
    for (let y = 0; y < rows; y++)
      for (let z = 0; z < columns; z++)
        out.data[at++] = x.data[(c * height + Math.floor(Math.fround(y / fy))) * width + Math.floor(Math.fround(z / fx))];
  return out;
}

function concat(parts) {
  const out = value([parts.reduce((n, part) => n + part.shape[0], 0), parts[0].shape[1], parts[0].shape[2]]);
  let at = 0;
  for (const part of parts) {
    out.data.set(part.data, at);
    at += part.data.length;
  }
  return out;
}

function slice(x, [begin, end]) {
  const size = x.shape[1] * x.shape[2];
  return { shape: [end - begin, x.shape[1], x.shape[2]], data: x.data.subarray(begin * size, end * size) };
}

function dense(x, node) {
  const [count, depth] = node.weight.shape, out = value([count, 1, 1]);
  for (let o = 0; o < count; o++) {
    let total = node.bias ? node.bias.data[o] : 0;
    for (let i = 0; i < depth; i++) total += node.weight.data[o * depth + i] * x.data[i];
    out.data[o] = total;
  }
  return out;
}

const OPERATORS = {
  Conv: ([x], node) => conv(x, node),
  Gemm: ([x], node) => dense(x, node),
  Relu: ([x]) => each(x, (v) => (v > 0 ? v : 0)),
  Sigmoid: ([x]) => each(x, (v) => 1 / (1 + Math.exp(-v))),
  HardSigmoid: ([x], node) => each(x, (v) => Math.min(1, Math.max(0, node.alpha * v + node.beta))),
  Clip: ([x], node) => each(x, (v) => Math.min(node.high, Math.max(node.low, v))),
  Add: ([a, b]) => pair(a, b, (p, q) => p + q),
  Sub: ([a, b]) => pair(a, b, (p, q) => p - q),
  Mul: ([a, b]) => pair(a, b, (p, q) => p * q),
  Div: ([a, b]) => pair(a, b, (p, q) => p / q),
  Concat: (parts) => concat(parts),
  Slice: ([x], node) => slice(x, node.range),
  Resize: ([x], node) => resize(x, node.factors),
  MaxPool: ([x], node) => pool(x, node, -Infinity, Math.max, (total) => total),
  AveragePool: ([x], node) => pool(x, node, 0, (a, b) => a + b, (total, n) => total / n),
  Flatten: ([x]) => ({ shape: [x.data.length, 1, 1], data: x.data }),
};

function load(network) {
  // The operators with their weights; network.weights is base64 of float16.
  const all = float16(bytesOf(network.weights));
  const tensor = ({ shape, at }) => ({ shape, data: all.subarray(at, at + shape.reduce((a, b) => a * b, 1)) });
  const constants = Object.fromEntries(Object.entries(network.constants).map(([name, held]) => [name, tensor(held)]));
  const nodes = network.nodes.map((node) => ({
    ...node,
    weight: node.weight && tensor(node.weight),
    bias: node.bias && tensor(node.bias),
  }));
  return { ...network, nodes, constants };
}

function compute(network, image) {
  // Float32Array [3 * S * S] in 0..1, red plane first, to logits.
  const values = { ...network.constants, [network.input]: { shape: [3, network.size, network.size], data: image } };
  for (const node of network.nodes) {
    values[node.output] = OPERATORS[node.op](node.inputs.map((name) => values[name]), node);
    for (const name of node.last) delete values[name];
  }
  return Array.from(values[network.output].data);
}

function softmax(logits) {
  const most = Math.max(...logits), raised = logits.map((v) => Math.exp(v - most));
  const total = raised.reduce((a, b) => a + b, 0);
  return raised.map((v) => v / total);
}

function answers(network, pixels) {
  // Bytes of images, [N, S, S, 3], to their logits and the milliseconds that each took.
  const side = network.size, size = side * side, logits = [], times = [];
  for (let begin = 0; begin < pixels.length; begin += 3 * size) {
    const image = planes(pixels.subarray(begin, begin + 3 * size), size, 3);
    const began = performance.now();
    logits.push(compute(network, image));
    times.push(performance.now() - began);
  }
  return { logits, times };
}

function planes(pixels, size, step) {
  // Interleaved bytes (step of 3 or 4 a pixel) to float planes in 0..1.
  const image = new Float32Array(3 * size);
  for (let c = 0; c < 3; c++) for (let i = 0; i < size; i++) image[c * size + i] = pixels[i * step + c] / 255;
  return image;
}

function fit(rgba, width, height, side) {
  // The centre square, scaled to side x side with a triangle filter (antialiased bilinear), as training did it.
  const square = Math.min(width, height), left = (width - square) / 2, top = (height - square) / 2;
  const scale = square / side, reach = Math.max(1, scale);
  const taps = (offset, limit) =>
    Array.from({ length: side }, (_, i) => {
      const centre = offset + (i + 0.5) * scale;
      const begin = Math.max(0, Math.floor(centre - reach + 0.5)), end = Math.min(limit, Math.floor(centre + reach + 0.5));
      const w = [];
      for (let x = begin; x < end; x++) w.push(Math.max(0, 1 - Math.abs((x + 0.5 - centre) / reach)));
      const total = w.reduce((a, b) => a + b, 0);
      return { begin, w: w.map((v) => v / total) };
    });
  const across = taps(left, width), down = taps(top, height);
  const rows = new Uint8ClampedArray(height * side * 3), out = new Uint8ClampedArray(side * side * 3);
  for (let y = 0; y < height; y++)
    for (let i = 0; i < side; i++)
      for (let c = 0; c < 3; c++) {
        let total = 0;
        across[i].w.forEach((w, k) => (total += w * rgba[(y * width + across[i].begin + k) * 4 + c]));
        rows[(y * side + i) * 3 + c] = total;
      }
  for (let i = 0; i < side; i++)
    for (let x = 0; x < side * 3; x++) {
      let total = 0;
      down[i].w.forEach((w, k) => (total += w * rows[(down[i].begin + k) * side * 3 + x]));
      out[i * side * 3 + x] = total;
    }
  return out;
}
