"""File servers, one a module. They know trees and the one library of their trade, nothing else."""
