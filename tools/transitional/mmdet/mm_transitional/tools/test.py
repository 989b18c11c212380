"""Run MMDetection's own test.py."""

from mm_transitional import hand_over

if __name__ == '__main__':
    hand_over(__file__)
