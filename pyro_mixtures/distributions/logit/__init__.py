"""Softmax components over items, and multinomial logits of choices."""
