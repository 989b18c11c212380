"""Run MMDetection's own train.py."""

from mm_transitional import hand_over

if __name__ == '__main__':
    hand_over(__file__)
