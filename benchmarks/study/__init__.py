"""The study: is V2 better than V1, and is a learned grower worth its training?"""
