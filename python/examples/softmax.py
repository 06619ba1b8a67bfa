"""Softmax regression on the digits (8 x 8), in Python alone: what a trainer is, and what the tests train.

    lapwing node --trainer "python3 softmax.py digits.csv.gz" ...

Each line of the file has 64 numbers from 0 to 16 and the digit. Every fifth line is for testing.
"""

import gzip
import json
import math
import random
import sys

import lapwing

PIXELS, DIGITS = 64, 10


class Softmax:
    def __init__(self, file):
        with gzip.open(file, "rt") as lines:
            rows = [[int(number) for number in line.split(",")] for line in lines]
        samples = [([pixel / 16 for pixel in row[:PIXELS]], row[PIXELS]) for row in rows]
        self.test = samples[::5]
        self.all = [sample for place, sample in enumerate(samples) if place % 5]
        self.weight = lapwing.Tensor((DIGITS, PIXELS))
        self.bias = lapwing.Tensor((DIGITS,))
        self.parameters = {"weight": self.weight, "bias": self.bias}

    def open(self, job):
        self.batch, self.momentum = job.batch, job.momentum
        self.own = job.share(self.all)
        self.draws = random.Random(job.seed * 1000 + job.part)
        self.speed = [0.0] * (DIGITS * PIXELS + DIGITS)

    def logits(self, pixels):
        weight = self.weight.data
        return [
            self.bias.data[digit] + math.fsum(map(float.__mul__, weight[digit * PIXELS : (digit + 1) * PIXELS], pixels))
            for digit in range(DIGITS)
        ]

    def train(self, steps, lr):
        total = 0.0
        for _ in range(steps):
            slope = [0.0] * len(self.speed)
            for pixels, digit in self.draws.choices(self.own, k=self.batch):
                logits = self.logits(pixels)
                largest = max(logits)
                powers = [math.exp(logit - largest) for logit in logits]
                total += math.log(sum(powers)) + largest - logits[digit]
                for place, power in enumerate(powers):
                    error = (power / sum(powers) - (place == digit)) / self.batch
                    slope[DIGITS * PIXELS + place] += error
                    for pixel, value in enumerate(pixels):
                        slope[place * PIXELS + pixel] += error * value
            for place, value in enumerate(slope):
                self.speed[place] = self.momentum * self.speed[place] + value
                if place < DIGITS * PIXELS:
                    self.weight.data[place] -= lr * self.speed[place]
                else:
                    self.bias.data[place - DIGITS * PIXELS] -= lr * self.speed[place]
        return total / (steps * self.batch), steps * self.batch

    def evaluate(self):
        right = 0
        for pixels, digit in self.test:
            logits = self.logits(pixels)
            right += logits.index(max(logits)) == digit
        return right / len(self.test)

    def save(self):
        return json.dumps(self.speed).encode()

    def restore(self, state):
        self.speed = json.loads(state) if state else [0.0] * len(self.speed)


if __name__ == "__main__":
    lapwing.run(Softmax(sys.argv[1]))
