"""Several processes that train one model: the same result, through kills, with the traffic and speed that it costs."""
