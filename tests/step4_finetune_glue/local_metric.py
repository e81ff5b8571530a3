"""GLUE's metrics as a module of the `evaluate` library, which is loaded by its path."""

import datasets
import evaluate
import scipy.stats
import sklearn.metrics


class Glue(evaluate.Metric):
    def _info(self):
        kind = "float64" if self.config_name == "stsb" else "int64"
        values = {"predictions": datasets.Value(kind), "references": datasets.Value(kind)}
        return evaluate.MetricInfo(
            description="GLUE", citation="", features=datasets.Features(values)
        )

    def _compute(self, predictions, references):
        if self.config_name == "stsb":
            return {
                "pearson": scipy.stats.pearsonr(predictions, references)[0],
                "spearman": scipy.stats.spearmanr(predictions, references)[0],
            }
        found = {
            "accuracy": sklearn.metrics.accuracy_score(references, predictions),
            "matthews": sklearn.metrics.matthews_corrcoef(references, predictions),
        }
        if max(*references, *predictions) < 2:  # F1 is for two classes
            found["f1"] = sklearn.metrics.f1_score(references, predictions, zero_division=0)
        return found
