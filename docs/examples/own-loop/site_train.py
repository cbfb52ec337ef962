"""Train a small network on images of digits; the argument is the file that contains them."""

import sys

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import mdc_flower


def network(shape=(1, 8, 8), classes=10):
    """Return a new network."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes))


def digits(path):
    """Return examples to train on, and every fifth example to validate on."""
    with np.load(path) as file:
        images = (torch.tensor(file["images"]) / 255 - 0.305) / 0.376
        labels = torch.tensor(file["labels"])
    is_held_out = torch.arange(len(labels)) % 5 == 4
    return [TensorDataset(images[rows], labels[rows]) for rows in (~is_held_out, is_held_out)]


def train(model, loader, optimizer, schedule, epochs):
    """Train for some epochs; return the mean loss."""
    total, count = 0.0, 0
    for _ in range(epochs):
        for images, labels in loader:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total, count = total + loss.item() * len(labels), count + len(labels)
    return total / count


def accuracy(model, data):
    """Return the share of examples whose class the model finds."""
    images, labels = data.tensors
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def main():
    """Train, and print what the network has learned."""
    data, held_out = digits(sys.argv[1])
    loader = DataLoader(data, batch_size=32, shuffle=True)
    model = network()

    def evaluate(round):
        round.load(model)
        return len(held_out), {"accuracy": accuracy(model, held_out)}

    with mdc_flower.site(evaluate) as site:
        for round in site.rounds():
            round.load(model)
            torch.manual_seed(round.seed("order"))
            optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
            schedule = round.lr_scheduler(optimizer, round.steps(len(loader)))
            loss = train(model, loader, optimizer, schedule, round.local_epochs)
            round.send(model, num_examples=len(data), metrics={"loss": loss})


if __name__ == "__main__":
    main()
